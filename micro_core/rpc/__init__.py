"""Remote calls over connections: `Client`, `Service`, `Server`, and the connections that they share with the proxy."""
