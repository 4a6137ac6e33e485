"""Forms of exported files: profiles, types of weights, layouts of folders."""
