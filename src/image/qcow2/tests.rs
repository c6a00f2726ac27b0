mod builder;
mod clusters;
mod hostile;
mod mutations;
