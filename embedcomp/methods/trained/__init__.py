"""Methods whose form is trained, with the rest of the model, before it is served."""
