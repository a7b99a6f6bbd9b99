"""The publishers' files over HTTP: whole, or single members of their zips; resumed, checked, never half."""
