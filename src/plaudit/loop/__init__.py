"""The whole way round: rounds of sampling, judging, learning and measuring, and what they leave behind."""
