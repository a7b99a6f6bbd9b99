"""From the publishers' downloads to the layout and the lists that the readers want, one module per set."""
