"""Every claim of arXiv 2409.07028 by its section: what is known of it, and what measures the rest.

In our words. Its figures are pictures of networks and data that were not published, so that what its text says of them
is compared, not their points.
"""

from dataclasses import dataclass

STATEMENTS = "tests/certificate/test_paper_statements.py"
KERNELS = "tests/tangent_kernel/test_ntk_statements.py"
THEOREMS = "tests/certificate/test_paper_theorems.py"
PARTITION = "tests/matrix_compression/test_paper_algorithm.py"
STATEMENT = "hrt/certificate/paper_statements.py"
ALGORITHM = "hrt/matrix_compression/paper_algorithm.py"
TRAINED = "perf/paper/trained_networks.py"
STUDY = "tests/perf/paper/test_command.py::test_judgements_follow_the_figures"
HOLDS, FALSE, NEEDS, OPEN = "holds", "violated", "needs an assumption", "not a statement"


@dataclass(frozen=True)
class Claim:
    """One claim, in our words.

    number: its section, and a count within.  verdict: HOLDS, FALSE, NEEDS or OPEN; empty where `part`, by what it
    measures, decides.  assumed: what would have to be assumed, or why it fails.  code: where it is computed.
    test: what fails where this entry is wrong.  part: of the study.  counted: the statement of `bounds` whose verdicts
    on random matrices stand beside.
    """

    number: str
    text: str
    verdict: str
    assumed: str
    code: str
    test: str
    part: str = ""
    counted: str = ""


CLAIMS = (
    # 0: abstract
    Claim("0.1", "Computation and memory of large physics-based networks shrink.", "",
          "blocks of low rank in the norm that counts: for a PINN that of its inputs, not of its weights",
          "perf/paper/data.py", STUDY, "compression"),
    Claim("0.2", "Essential properties of the neural tangent kernel are kept.", "",
          "smooth activations, and a tolerance that bounds the weights, not the output",
          "perf/paper/ntk.py", STUDY, "kernel"),
    Claim("0.3", "Blocks are refined adaptively by local error estimates.", "",
          "a matrix that is not best kept as one block", ALGORITHM, STUDY, "heat-map"),
    Claim("0.4", "Training is efficient, and the trained network performs robustly.", "",
          "partitions that change late, and few steps lost to each change", TRAINED, STUDY, "training"),
    Claim("0.5", "It does better than SVD, pruning and quantization at high accuracy.", "",
          "the norm of the data and storage in few bits, which hrt has and Algorithm 1 has not",
          "perf/paper/data.py", STUDY, "comparison"),
    Claim("0.6", "It generalizes better.", "", "nothing in it lowers a test error but chance",
          "perf/paper/data.py", STUDY, "train-and-test"),
    Claim("0.7", "Inference is faster and fit for real time.", "",
          "an executor that turns fewer numbers into less time at that batch size",
          "perf/paper/data.py", STUDY, "speed"),
    Claim("0.8", "It scales to large problems.", "", "kernels whose ranks do not grow with n",
          "perf/paper/complexity.py", STUDY, "complexity"),
    # 1: introduction
    Claim("1.1", "Weights have sub-blocks of low rank.", "", "see 0.1", "perf/paper/data.py", STUDY, "compression"),
    Claim("1.2", "Convergence and fidelity of the model are kept while it is compressed.", "", "see 0.4",
          TRAINED, STUDY, "training"),
    Claim("1.3", "It is resilient to perturbations.", NEEDS, "see 3.2 and 3.3",
          STATEMENT, f"{THEOREMS}::TestTheorem1::test_b_needs_that_h_stays"),
    # 2: preliminaries
    Claim("2.1", "The kernel of a PINN is that of its residual, too.", OPEN, "a definition; both are measured",
          "hrt/tangent_kernel/ntk.py",
          "tests/perf/paper/test_ntk.py::test_the_residuals_kernel_is_that_of_the_training", "kernel"),
    Claim("2.2", "Theta_h = Theta + O(||E||) for W = H(W) + E.", NEEDS,
          "activations whose derivatives are Lipschitz, bounded inputs and weights; the kernel of a ReLU jumps",
          "hrt/tangent_kernel/ntk_statements.py",
          f"{KERNELS}::TestDriftOverTolerance::test_counter_example_relu_jumps", "kernel"),
    Claim("2.3", "Gradient descent on the compressed weights is stable and efficient.", "", "see 0.4",
          TRAINED, STUDY, "training"),
    Claim("2.4", "Figure 1: H-matrices enter a PINN between its weights and its training.", OPEN,
          "a flow chart of steps without figures: 3.3.1, 2.3 and 3.T2a judge them", "", ""),
    # 3: construction
    Claim("3.1", "||A - H||_F <= tau sqrt(n_r) for n_r blocks, each within tau.", HOLDS,
          "n_r counts every approximated block; for disjoint blocks the squares add up to an equality",
          STATEMENT, f"{STATEMENTS}::TestFrobenius::test_blocks_add_up_exactly", "",
          "||E||_F <= root of sum of blocks"),
    Claim("3.2", "||A' - H'||_F <= tau + delta for A' = A + dA, ||dA||_F <= delta.", NEEDS,
          "that H' is H, or that tau bounds the whole error, not a block's",
          STATEMENT, f"{THEOREMS}::TestTheorem1::test_b_needs_that_h_stays"),
    Claim("3.3", "kappa(H') <= kappa(H) + O(eps).", NEEDS,
          "a constant that holds kappa(H)^2: without it the O says nothing for ill-conditioned H",
          STATEMENT, f"{THEOREMS}::TestTheorem1::test_d_has_no_constant"),
    Claim("3.4", "Errors and condition numbers stay stable, above all for ill-conditioned matrices.", FALSE,
          "kappa(A) = 1e6 within 1e-3: H is singular; tau < sigma_min(A) would do", STATEMENT,
          f"{THEOREMS}::test_an_ill_conditioned_matrix_may_become_singular"),
    Claim("3.T1a", "||A - H||_F <= sum of the blocks' errors.", HOLDS, "loose by up to sqrt(n_r): 3.1 is sharp",
          STATEMENT, f"{THEOREMS}::TestTheorem1::test_a_the_sum_of_blocks_holds_and_is_loose"),
    Claim("3.T1b", "||A' - H'||_F <= tau + delta.", NEEDS, "see 3.2",
          STATEMENT, f"{THEOREMS}::TestTheorem1::test_b_needs_that_h_stays"),
    Claim("3.T1c", "kappa(H) <= kappa(A) (1 + ||E||_2 / (sigma_min(A) - ||E||_2)).", FALSE,
          "A = I, H = diag(1.1, 0.9): 1.22 against 1.11; (sigma_1 + ||E||) / (sigma_min - ||E||) holds",
          STATEMENT, f"{THEOREMS}::TestTheorem1::test_c_is_false", "", "condition (theorem 1c)"),
    Claim("3.T1d", "kappa(H') <= kappa(H) + O(eps) in PINNs.", NEEDS, "see 3.3",
          STATEMENT, f"{THEOREMS}::TestTheorem1::test_d_has_no_constant"),
    Claim("3.T1e", "kappa(H') <= kappa(H) (1 + delta / sigma_min(H)).", FALSE,
          "H = I, H' = diag(1, 0.9): 1.11 against 1.10; true to first order in delta",
          STATEMENT, f"{THEOREMS}::TestTheorem1::test_e_is_false"),
    Claim("3.T1f", "Training error <= tau T after T refinements.", NEEDS,
          "that a network without compression has no training error; tau T grows where refinement shrinks errors",
          STATEMENT, f"{THEOREMS}::TestTheorem1::test_f_says_nothing_of_training"),
    Claim("3.1.1", "The error after p refinements is at most C / 2^p.", FALSE,
          "smoothness off the diagonal; an 8 x 8 identity in 256 x 256 zeros at rank 4 stays for five levels",
          STATEMENT, f"{THEOREMS}::test_the_error_need_not_halve_with_every_refinement"),
    Claim("3.1.2", "The loss falls as O(1 / k^(r + p)) instead of O(1 / k^r).", "",
          "nothing that was found makes it so: refinement changes the model, not the optimiser",
          "perf/paper/rates.py", STUDY, "rates"),
    Claim("3.1.3", "A penalty lambda R(H) on the sum of ranks trades loss against rank.", "",
          "ranks in the norm of the data, and proximal steps: the sum of ranks has no gradient",
          "hrt/training/rank_penalty.py", STUDY, "regulariser"),
    Claim("3.1.4", "Refinement ends after finitely many steps with a global error below tau.", FALSE,
          "it ends; blocks within tau leave up to tau sqrt(n_r): 4.8 tau for a log kernel of 256 at 1e-2",
          ALGORITHM, f"{PARTITION}::test_the_literal_form_exceeds_its_tolerance_as_a_whole"),
    Claim("3.1.5", "Each refinement costs O(n log n).", NEEDS,
          "access to entries instead of a dense array, which alone takes n^2", "perf/paper/complexity.py", STUDY,
          "complexity"),
    Claim("3.2.1", "Memory falls from O(n^2) to O(k n log n).", "", "ranks k that stay bounded as n grows",
          "perf/paper/complexity.py", STUDY, "complexity"),
    Claim("3.2.2", "A product with a vector costs O(k n log n).", "", "see 3.2.1; overheads of small blocks aside",
          "perf/paper/complexity.py", STUDY, "complexity"),
    Claim("3.2.3", "||W - H(W)||_F stays within the tolerance that was set.", HOLDS,
          "shares of one budget, as hrt has them", "hrt/matrix_compression/compress_matrix.py",
          f"{STATEMENTS}::TestFrobenius::test_within_and_beyond_the_tolerance", "", "||E||_F <= tol ||W||_F"),
    Claim("3.2.4", "Numerical stability in complex inverse problems.", OPEN, "nothing that could be computed", "", ""),
    Claim("3.3.1", "Algorithm 1 ends with every block within its tolerance.", HOLDS,
          "finest blocks are stored as they are",
          ALGORITHM, f"{PARTITION}::test_the_error_of_each_form_is_within_its_bound", "heat-map"),
    Claim("3.3.2", "Algorithm 1 applies to Burgers' equation.", HOLDS, "its size there: see the first figure",
          "perf/paper/weight_methods.py", STUDY, "compression"),
    Claim("3.3.3", "ApplyHMatrixToPINNs keeps kernel, robustness and efficiency (lines 14 to 26).", OPEN,
          "aims in the place of steps: 3.T2a to 3.T2e judge them", "", ""),
    Claim("3.T2", "Theta_H is a block matrix of the parts that belong to the blocks W_ij.", NEEDS,
          "that blocks are summed: rows of a kernel are points, not weights",
          "hrt/tangent_kernel/ntk.py", f"{KERNELS}::test_parts_of_a_weight_add_up_in_the_kernel"),
    Claim("3.T2a", "||Theta - Theta_H||_F <= C eps.", "",
          "smooth activations, one network, eps the error of its weights; nothing follows from the output's",
          "hrt/tangent_kernel/ntk_statements.py",
          f"{KERNELS}::TestDriftOverTolerance::test_counter_example_equal_outputs_with_other_kernels", "kernel"),
    Claim("3.T2b", "Theta_H stays positive definite.", NEEDS, "||Theta - Theta_H||_2 < lambda_min(Theta) (Weyl)",
          "hrt/tangent_kernel/ntk_statements.py",
          f"{KERNELS}::TestDefiniteness::test_counter_example_definiteness_is_lost", "kernel"),
    Claim("3.T2c", "Spectral characteristics of the kernel stay.", NEEDS, "a gap behind the eigenvalues in question",
          "hrt/tangent_kernel/ntk_statements.py",
          f"{KERNELS}::TestEigen::test_counter_example_eigenspaces_swap_without_a_gap", "kernel"),
    Claim("3.T2d", "Convergence is better for high-dimensional problems.", OPEN, "no rate is stated; see 3.1.2", "", "",
          "rates"),
    Claim("3.T2e", "H(A) keeps its conditioning even where A is ill-conditioned.", FALSE, "see 3.4", STATEMENT,
          f"{THEOREMS}::test_an_ill_conditioned_matrix_may_become_singular"),
    Claim("3.T3", "kappa(H) <= kappa(A) (1 + tau / sigma_k).", FALSE,
          "to first order only: A = I, H = diag(1, 0.9) has 1.111 against 1.1", STATEMENT,
          f"{STATEMENTS}::TestCondition::test_the_papers_bound_fails_to_second_order_and_weyls_does_not", "",
          "condition (paper)"),
    Claim("3.T3b", "|sigma_i(A) - sigma_i(H)| <= ||A - H||_2.", HOLDS, "Weyl's theorem", STATEMENT,
          f"{STATEMENTS}::test_theorems_are_never_violated", "", "singular values (Weyl)"),
    Claim("3.T3c", "kappa(H) is close to kappa(A) where tau is small beside sigma_k.", HOLDS,
          "sigma_k = sigma_min(A): kappa(H) <= (sigma_1 + tau) / (sigma_min - tau); none above it will do", STATEMENT,
          f"{STATEMENTS}::TestCondition::test_the_papers_bound_fails_to_second_order_and_weyls_does_not", "",
          "condition (Weyl)"),
    # 4: numerical results
    Claim("4.2a", "SVD's accuracy hardly changes with compression; the method keeps more over a wider range.", "",
          "blocks of low rank in the weights' norm: an operator's matrix has them, a PINN's weights have not",
          "perf/paper/data.py", STUDY, "compression"),
    Claim("4.2b", "The compressed layer keeps the weight's essential features (layer 1, epoch 20).", "",
          "features in the norm of the data: those of the weight's norm need not be kept", "perf/paper/data.py", STUDY,
          "snapshot"),
    Claim("4.3", "Accuracy settles while the compression ratio stays the same over the epochs.", "", "see 0.4",
          TRAINED, STUDY, "training"),
    Claim("4.4a", "Training accuracy stays high, test accuracy drops slightly, nothing is overfitted.", "",
          "calibration rows as many and as spread as the inputs to come",
          "perf/paper/data.py", STUDY, "train-and-test"),
    Claim("4.4b", "It does better than SVD, pruning and quantization, above all at high compression.", "", "see 0.5",
          "perf/paper/data.py", STUDY, "comparison"),
    Claim("4.5", "Inference is fastest, with the least variance.", "", "see 0.7", "perf/paper/data.py", STUDY, "speed"),
    Claim("4.6", "Errors pile up over layers with SVD and stay much lower with the method, at every tolerance.", "",
          "equal tolerances of weights compare unequal sizes, and no error at all means weights that are stored dense",
          "perf/paper/propagation.py", STUDY, "propagation"),
    # 5: conclusion
    Claim("5.1", "Convergence is more stable.", "", "see 0.4", TRAINED, STUDY, "training"),
    Claim("5.2", "Generalization is better.", "", "see 0.6", "perf/paper/data.py", STUDY, "train-and-test"),
    Claim("5.3", "The method is fit for places with few resources.", "", "see 0.7; bytes in the first figure",
          "perf/paper/data.py", STUDY, "speed"),
)  # fmt: skip
