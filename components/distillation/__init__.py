"""Train small students from one shared pass of the frozen teacher."""
