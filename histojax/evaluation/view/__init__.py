"""Results in a browser: sites of pages and pictures, a server for this machine only, and folders without a server."""
