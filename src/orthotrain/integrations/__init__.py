"""One line in the loops of other frameworks.

:mod:`orthotrain.integrations.transformers` needs the extra ``transformers``,
:mod:`orthotrain.integrations.lightning` the extra ``lightning``. Nothing is imported before one of
these modules is.
"""
