"""All of Connect Chat on one machine: engines and services as plain processes on the loopback interface."""
