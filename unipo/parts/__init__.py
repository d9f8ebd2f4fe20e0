"""What methods are made of: frozen dataclasses with one pure call each."""
