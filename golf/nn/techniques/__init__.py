"""Techniques: small modules at named sites of the model, one file each (see base.py)."""
