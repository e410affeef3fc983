"""Where items run: one module for each kind of worker, behind one interface."""
