"""The `baton` command and the local supervisor: the only place that composes everything.

Belongs here: what a user types and sees, and which processes serve a Model on this machine.
Does not belong here: what a Model is (baton_api.crd), what a process does once it runs.

    compose, supervision            pure: Model -> processes; state + event -> actions
    supervisor, child, rundir       processes, their bond to the supervisor, their files
    up, demo, chat, status          one command each
    client, view                    asking an endpoint; what is shown
    main                            the command line
"""
