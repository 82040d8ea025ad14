"""What turns the model into one rank's part of it: the mesh, and one module per form."""
