"""Ray Serve applications by import path, for `serve deploy serve_apps/flywheel.yaml`."""
