"""Two towers, score(i, j) = F(x_i)' G(y_j): needs the extra ``eckart[torch]``, which is imported when a fit begins."""
