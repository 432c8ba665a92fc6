"""Everything that a request passes through. No torch and no bentoml in here."""
