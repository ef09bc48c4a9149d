"""The only way from methods to models: `record`, `evaluate`, `check`. Worlds in, numbers out."""
