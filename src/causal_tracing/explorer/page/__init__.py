"""The explorer's page: its form, and the scripts that talk to the server and fill the report's own map."""
