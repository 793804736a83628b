"""The page on a screen in a public place."""
