"""What people say about the tasks that were found: the file it is kept in, how it is applied, and what they see."""
