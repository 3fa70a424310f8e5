"""The laboratory: runs, experiments and reports on top of the library (extra ``lab``)."""
