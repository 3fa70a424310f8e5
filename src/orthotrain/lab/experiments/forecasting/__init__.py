"""Forecasting: does low rank beat a dense forecaster because it regularises?"""
