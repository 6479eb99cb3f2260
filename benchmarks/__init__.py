"""One file per question; each prints what it measured and can append a dated row to README.md."""
