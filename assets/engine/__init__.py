"""What makes a stage an asset: stages, recipes, the store, loading, partitions, automation."""
