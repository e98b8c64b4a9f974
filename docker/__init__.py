"""Installation and operation of Connect Chat: on one machine, in containers, and on AWS."""
