"""Archives: originals and enhanced pictures as folders that people can use, in a folder or a bucket."""
