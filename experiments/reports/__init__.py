"""Tables, figures and one offline page from the evidence."""
