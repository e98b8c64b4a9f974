"""Keeping the offline store and the log in step after losses: fencing tokens and logs of before a repartition."""
