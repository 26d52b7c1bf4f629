"""Training the translator: the LightningModule, the schedule, and checks of the Trainer."""
