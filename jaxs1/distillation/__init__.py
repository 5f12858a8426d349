"""A student from a teacher: questions to the verified traces that the student is trained on."""
