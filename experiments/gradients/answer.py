"""The words of gradient_comparison.md that no formula makes: written after looking at the reference run (`full`)."""

ANSWER = """\
## Which should I use, when?

Read off the run of the preset `full`, seed 0; the tables below say what this run found.

| you have | use | because |
|---|---|---|
| the true pose, and noise that strikes each keypoint by itself | `likelihood`, the Gaussian one of the \
keypoints about the true projections, with learned weights | no solver, 0.7 ms a step; lowest or level with it \
in noise, on planes near and far, from far keypoints |
| the same, with wrong matches, or no wish to tune | `linear_covariance` | within 10 % of the lowest everywhere \
but in shared noise and from far keypoints (1.33 against 1.21); all runs reach the goal, but for shared noise |
| keypoints whose errors go together (occlusion, a shifted part), or a loss on the pose that is no likelihood | \
`exact`, after any of the above has brought the keypoints near | only what goes through the solver sees that six \
wrong keypoints agree: 1.83 of the oracle's error against 2.3 to 2.5, lower on each of the five seeds |
| many wrong matches, and a use for the pose's spread as well | `epro_pnp` | level with `linear_covariance` \
there, at 14 ms a step |

**Where ours loses.** The exact gradient is not the fastest way to learn. Only 66 % of its keypoint gradients \
point the right way, and it takes more steps to the goal than `linear_covariance` and `likelihood`: 30 against \
20 and 10 in noise, 120 against 60 and 80 from keypoints 60 px off. There it ends at 1.62 against 1.21, on far \
planes at 1.19 against 1.01, among outliers at 2.06 against 1.81. Where a true pose and known points give labels \
for the keypoints, learning from these labels is the better start.

**What the share tells, and what not.** 66 % at twelve points; with 64 random points (100 views, 5 px) we count \
55 % for `exact` and `published` and 61 % for `epro_pnp`, near the 53.9 % and 59.3 % of arXiv 2303.11516: the \
more points, the less one of them decides. Methods at 100 % are there in fewer steps. They do not end lower for \
it: shared noise is won at 66 %, because a gradient that moves every keypoint to its place does not ask which \
errors matter together.

**Exact or approximate?** For learning there is no difference to be seen between `exact` and `gauss_newton`, \
whose gradient is 1 % off at 5 px of noise and 5 % at 20 px; `last_step` is `gauss_newton` at twice the price, \
equal in every digit shown. `unrolled` is `exact` at some twenty times the price; where its rows say lost, one \
gradient was no number. Exactness pays where the derivative is itself the result (covariances, second \
derivatives, finite-difference checks).

**The published formula** is 13 % off at any noise, and learns as well as the exact gradient without weights \
(`unweighted`). What it lacks is the weights: among outliers it stays at 18 times the oracle's error, as the \
exact gradient does without them; plain `reprojection` gets worse than it began.

**DSAC** is level with the others in noise and in shared noise, and loses from far keypoints, where its 12 px \
threshold calls nearly everything an outlier, and among outliers. Its threshold and its 16 sets of five were not \
tuned, nor anything else here but the learning rate.

**A start 150° off** in training changes little: on a solid in full view Levenberg-Marquardt nearly always finds \
the same minimum (1.12 for `exact`, 1.18 with the global search, but one of five seeds ends at 2.0 and none did \
before). Losses without a solver do not ask for a start.

What this does not say: one small network, one object size, Adam; no symmetric objects, whose labels are not \
unique; no images."""
