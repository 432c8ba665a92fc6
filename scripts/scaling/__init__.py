"""How many devices a load needs: costs, and a simulation of a cluster. Nothing is measured here."""
