"""What annotators answered: how it is stored, asked for, counted, and judged."""
