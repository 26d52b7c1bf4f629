"""The paper's tables on Brodenette."""
