"""What the experiments share.

`harness` runs an experiment in a folder; `settings`, `tasks` and `methods` say what is
trained and how; `runner` trains; `data` loads images; `report` and `page` show.
"""
