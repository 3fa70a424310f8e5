"""Files of weights with no network around them: read, looked through and made smaller."""

from orthotrain.lowrank.state_dicts.compression import CompressedState, compress_state
from orthotrain.lowrank.state_dicts.read import StoredModel, read_any
from orthotrain.lowrank.state_dicts.survey import Survey, survey

__all__ = ["CompressedState", "StoredModel", "Survey", "compress_state", "read_any", "survey"]
