"""The pages a person looks at, drawn only from files that are already written."""
