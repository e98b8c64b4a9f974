"""Recovery of the offline store from the log after Redis lost data: fencing tokens, and logs before a repartition."""
