mod builder;
mod dialects;
mod hostile;
mod mutations;
mod round_trip;
