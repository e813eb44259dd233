"""Association of stroma percentages with the outcome of patients: joined tables, figures and a Kaplan-Meier picture."""
