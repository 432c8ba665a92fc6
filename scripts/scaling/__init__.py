"""How many devices a load needs: rates, costs, and a simulation of the service on a cluster. Nothing is measured here."""
