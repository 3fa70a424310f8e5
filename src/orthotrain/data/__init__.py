"""Embedded and local image data, split once and for all by an explicit generator."""
