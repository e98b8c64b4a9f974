"""Operations that the commands and the inspector share: audit, journeys, dead letters, lag, leases, repartition."""
