"""The steps of the research agent: plain functions that know nothing about endpoints."""
