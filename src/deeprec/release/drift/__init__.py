"""Whether the world has moved since a bundle's training: what is looked at, the verdict, and the page that shows it."""
