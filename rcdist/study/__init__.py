"""Studies: arms that are named, trained with paired seeds, measured on other text and timed; tables from MLflow."""
