"""From plan to jobs: the executors, the job, and what comes before and after."""
