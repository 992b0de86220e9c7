"""Tables, figures and HTML, made from finished run directories only."""
