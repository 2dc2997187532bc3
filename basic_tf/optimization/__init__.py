"""AdaFactorW, learning-rate schedules and the rule table by parameter path."""
