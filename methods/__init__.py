"""The table of methods, readable without torch: one row for each method, one method for each file."""

from __future__ import annotations

from methods.table import Access, MethodRow

_FULLER = (
    "A. Fuller, J. R. Green, E. Shelhamer. Self-Soupervision: Cooking Model Soups without Labels. ICML 2026. "
    "arXiv:2602.02890"
)
_LI = (
    "Y. Li, N. Wang, J. Shi, J. Liu, X. Hou. Revisiting Batch Normalization For Practical Domain Adaptation. 2016. "
    "arXiv:1603.04779"
)
_LIANG = (
    "J. Liang, D. Hu, J. Feng. Do We Really Need to Access the Source Data? Source Hypothesis Transfer for "
    "Unsupervised Domain Adaptation. ICML 2020. arXiv:2002.08546"
)
_WANG = (
    "D. Wang, E. Shelhamer, S. Liu, B. Olshausen, T. Darrell. "
    "Tent: Fully Test-Time Adaptation by Entropy Minimization. ICLR 2021. arXiv:2006.10726"
)

_NIU_EATA = "S. Niu et al. Efficient Test-Time Model Adaptation without Forgetting. ICML 2022. arXiv:2204.02610"
_ZHANG_COME = (
    "Q. Zhang et al. COME: Test-time adaption by Conservatively Minimizing Entropy. ICLR 2025. arXiv:2410.10894"
)

_SUN = (
    "Y. Sun, X. Wang, Z. Liu, J. Miller, A. A. Efros, M. Hardt. Test-Time Training with Self-Supervision for "
    "Generalization under Distribution Shifts. ICML 2020. arXiv:1909.13231"
)
_LIU = (
    "Y. Liu, P. Kothari, B. van Delft, B. Bellot-Gurlet, T. Mordan, A. Alahi. TTT++: When Does Self-Supervised "
    "Test-Time Training Fail or Thrive? NeurIPS 2021."
)
_GANDELSMAN = (
    "Y. Gandelsman, Y. Sun, X. Chen, A. A. Efros. Test-Time Training with Masked Autoencoders. NeurIPS 2022. "
    "arXiv:2209.07522"
)

PLAIN = MethodRow("plain", "adapter", "methods.adapters.plain:Plain", "Predicts and changes nothing", Access(), "")

_ROWS = (
    MethodRow(
        "source",
        "recipe",
        "methods.recipes.source:SourceOnly",
        "The stock fine-tuned on clean labelled images (LP-FT)",
        Access(),
        "A. Kumar et al. Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution. ICLR 2022. "
        "arXiv:2202.10054",
    ),
    MethodRow(
        "augmix",
        "recipe",
        "methods.recipes.augmix:AugMix",
        "The stock fine-tuned on clean labelled images with AugMix and a consistency loss",
        Access(),
        "D. Hendrycks, N. Mu, E. D. Cubuk, B. Zoph, J. Gilmer, B. Lakshminarayanan. AugMix: A Simple Data Processing "
        "Method to Improve Robustness and Uncertainty. ICLR 2020. arXiv:1912.02781",
        starts_as="source",
    ),
    MethodRow(
        "three_augment",
        "recipe",
        "methods.recipes.three_augment:ThreeAugment",
        "The stock fine-tuned on clean labelled images with 3-Augment and colour jitter",
        Access(),
        "H. Touvron, M. Cord, H. Jégou. DeiT III: Revenge of the ViT. ECCV 2022. arXiv:2204.07118",
        starts_as="source",
    ),
    MethodRow(
        "prime",
        "recipe",
        "methods.recipes.prime:Prime",
        "The stock fine-tuned on clean labelled images with random deformations, colour curves and filters (PRIME)",
        Access(),
        "A. Modas, R. Rade, G. Ortiz-Jiménez, S.-M. Moosavi-Dezfooli, P. Frossard. PRIME: A Few Primitives Can Boost "
        "Robustness to Common Corruptions. ECCV 2022. arXiv:2112.13547",
        starts_as="source",
    ),
    MethodRow(
        "mae_probe",
        "recipe",
        "methods.recipes.mae_probe:MaeProbe",
        "Linear probe of a masked autoencoder on clean labelled images, its encoder frozen and its decoder kept",
        Access(),
        _GANDELSMAN,
        starts_as="source",
    ),
    MethodRow(
        "supervised_soup",
        "recipe",
        "methods.recipes.supervised_soup:SupervisedSoup",
        "Average of several fine-tunings of one stock on clean labelled images",
        Access(),
        "M. Wortsman et al. Model soups: averaging weights of multiple fine-tuned models improves accuracy without "
        "increasing inference time. ICML 2022. arXiv:2203.05482",
    ),
    MethodRow(
        "selfsoup",
        "recipe",
        "methods.selfsoup.recipe:SelfSoup",
        "Average of models inter-trained on shifted images without labels, then fine-tuned back on clean ones",
        Access(source="labelled", test="pool", state="offline", backprop="full"),
        _FULLER,
    ),
    MethodRow(
        "selfsoup_clean",
        "recipe",
        "methods.selfsoup.recipe:CleanSelfSoup",
        "Control: the recipe of selfsoup cooked on clean images instead of shifted ones",
        Access(),
        _FULLER,
        options_of="selfsoup",
    ),
    MethodRow(
        "selfsoup_diverse_clean",
        "recipe",
        "methods.selfsoup.recipe:DiverseCleanSoup",
        "MAE, MoCo v3 and MMCR on clean images, fine-tuned and averaged: the soup the paper counts +3.5 and +7 from",
        Access(),
        _FULLER,
    ),
    MethodRow(
        "selfsoup_single",
        "recipe",
        "methods.selfsoup.recipe:SingleIngredient",
        "Control: one MAE ingredient given the self-supervised compute of the whole soup",
        Access(source="labelled", test="pool", state="offline", backprop="full"),
        _FULLER,
        options_of="selfsoup",
    ),
    MethodRow(
        "continued_ssl_soup",
        "recipe",
        "methods.selfsoup.recipe:ContinuedSoup",
        "Control: one self-supervised run on clean images, fine-tuned as often as all ingredients are, averaged",
        Access(),
        _FULLER,
        options_of="selfsoup",
    ),
    MethodRow(
        "ssl_clean",
        "recipe",
        "methods.selfsoup.recipe:CleanSingleIngredient",
        "Control: one MAE ingredient on clean images given the self-supervised compute of the whole soup",
        Access(),
        _FULLER,
        options_of="selfsoup",
    ),
    MethodRow(
        "tent_pool",
        "recipe",
        "methods.recipes.pool_adaptation:PoolTent",
        "TENT for several epochs over the shifted images that a Self-Soup sees, then fixed",
        Access(test="pool", state="offline", backprop="norm"),
        _WANG,
        starts_as="source",
    ),
    MethodRow(
        "shot_im_pool",
        "recipe",
        "methods.recipes.pool_adaptation:PoolShotIM",
        "SHOT-IM for several epochs over the shifted images that a Self-Soup sees, then fixed",
        Access(test="pool", state="offline", backprop="full"),
        _LIANG,
        starts_as="source",
    ),
    MethodRow(
        "shot_pool",
        "recipe",
        "methods.recipes.shot_pool:PoolShot",
        "SHOT-IM with pseudo-labels of class centroids, for several epochs over the shifted images of a Self-Soup",
        Access(test="pool", state="offline", backprop="full"),
        _LIANG,
        starts_as="source",
    ),
    MethodRow(
        "adabn_pool",
        "recipe",
        "methods.recipes.adabn_pool:PoolAdaBN",
        "BatchNorm with the means and variances of the shifted images that a Self-Soup sees",
        Access(test="pool", state="offline"),
        _LI,
        starts_as="source",
    ),
    MethodRow(
        "source_rotation",
        "recipe",
        "methods.recipes.source_rotation:SourceRotation",
        "The stock fine-tuned on clean labelled images and on telling their rotations, with a second head",
        Access(),
        _SUN,
        starts_as="source",
    ),
    MethodRow(
        "source_contrast",
        "recipe",
        "methods.recipes.source_contrast:SourceContrast",
        "The stock fine-tuned on clean labelled images and on telling their views apart, with a projection head",
        Access(),
        _LIU,
        starts_as="source",
    ),
    MethodRow(
        "bn",
        "adapter",
        "methods.adapters.bn:BatchNormStatistics",
        "Batch normalisation with the statistics of each test batch",
        Access(test="stream", state="fixed"),
        "Z. Nado et al. Evaluating Prediction-Time Batch Normalization for Robustness under Covariate Shift. 2020. "
        "arXiv:2006.10963",
    ),
    MethodRow(
        "bn_alpha",
        "adapter",
        "methods.adapters.bn_alpha:BatchNormAlpha",
        "Batch normalisation with a blend of the source statistics and those of each test batch",
        Access(test="stream", state="fixed"),
        "S. Schneider et al. Improving robustness against common corruptions by covariate shift adaptation. NeurIPS "
        "2020. arXiv:2006.16971",
    ),
    MethodRow(
        "bn_ema",
        "adapter",
        "methods.adapters.bn_ema:BatchNormAverage",
        "Batch normalisation with source statistics that follow the stream by a moving average",
        Access(test="stream", state="online"),
        _LI,
    ),
    MethodRow(
        "dua",
        "adapter",
        "methods.adapters.dua:Dua",
        "Moves the statistics of batch normalisation by views of the first images, one by one, ever less",
        Access(test="stream", state="online"),
        "M. J. Mirza, J. Micorek, H. Possegger, H. Bischof. The Norm Must Go On: Dynamic Unsupervised Domain "
        "Adaptation by Normalization. CVPR 2022. arXiv:2112.00463",
    ),
    MethodRow(
        "lame",
        "adapter",
        "methods.adapters.lame:Lame",
        "Corrects the predictions of each batch so that images with near features get near labels",
        Access(test="stream", state="fixed"),
        "M. Boudiaf, R. Mueller, I. Ben Ayed, L. Bertinetto. Parameter-free Online Test-time Adaptation. CVPR 2022. "
        "arXiv:2201.05718",
    ),
    MethodRow(
        "t3a",
        "adapter",
        "methods.adapters.t3a:T3A",
        "Replaces the last layer by prototypes of the most certain test features of each class",
        Access(test="stream", state="online"),
        "Y. Iwasawa, Y. Matsuo. Test-Time Classifier Adjustment Module for Model-Agnostic Domain Generalization. "
        "NeurIPS 2021.",
    ),
    MethodRow(
        "shot_im",
        "adapter",
        "methods.adapters.shot_im:ShotIM",
        "Makes each prediction certain and their mean diverse, over all parameters before the last layer",
        Access(test="stream", state="online", backprop="full"),
        _LIANG,
    ),
    MethodRow(
        "foa",
        "adapter",
        "methods.adapters.foa:FOA",
        "Searches prompts of a vision transformer by CMA-ES and shifts its last features, by forward passes alone",
        Access(source="statistics", test="stream", state="online"),
        "S. Niu, C. Miao, G. Chen, P. Wu, P. Zhao. Test-Time Model Adaptation with Only Forward Passes. ICML 2024. "
        "arXiv:2404.01650",
        version=2,
    ),
    MethodRow(
        "tent",
        "adapter",
        "methods.adapters.tent:Tent",
        "Minimises the entropy of predictions over the affine parameters of normalisation layers",
        Access(test="stream", state="online", backprop="norm"),
        _WANG,
    ),
    MethodRow(
        "memo",
        "adapter",
        "methods.adapters.memo:Memo",
        "Minimises the marginal entropy over augmented views of one image, then predicts it and forgets",
        Access(test="image", state="episodic", backprop="full"),
        "M. Zhang, S. Levine, C. Finn. MEMO: Test Time Robustness via Adaptation and Augmentation. NeurIPS 2022. "
        "arXiv:2110.09506",
    ),
    MethodRow(
        "ttt_mae",
        "adapter",
        "methods.adapters.ttt_mae:TttMae",
        "Learns to reconstruct the hidden patches of one image, then predicts it and forgets",
        Access(test="image", state="episodic", backprop="full"),
        _GANDELSMAN,
        needs="mae_probe",
    ),
    MethodRow(
        "ttt_mae_online",
        "adapter",
        "methods.adapters.ttt_mae:TttMaeOnline",
        "Learns to reconstruct the hidden patches of each image along the stream",
        Access(test="stream", state="online", backprop="full"),
        _GANDELSMAN,
        needs="mae_probe",
    ),
    MethodRow(
        "eta",
        "adapter",
        "methods.adapters.eta:Eta",
        "Minimises the entropy of reliable images that are unlike those learnt from before",
        Access(test="stream", state="online", backprop="norm"),
        _NIU_EATA,
    ),
    MethodRow(
        "eata",
        "adapter",
        "methods.adapters.eata:Eata",
        "ETA with parameters held near the source where they matter for it (Fisher information)",
        Access(source="unlabelled", test="stream", state="online", backprop="norm"),
        _NIU_EATA,
    ),
    MethodRow(
        "eata_val",
        "adapter",
        "methods.adapters.eata:EataVal",
        "EATA with its Fisher information from clean images of the test set that are not scored, as in its release",
        Access(source="unlabelled", test="pool", state="online", backprop="norm"),
        _NIU_EATA,
        options_of="eata",
    ),
    MethodRow(
        "rdumb",
        "adapter",
        "methods.adapters.rdumb:Rdumb",
        "ETA that returns to the source after every 1000 batches",
        Access(test="stream", state="online", backprop="norm"),
        "O. Press, S. Schneider, M. Kümmerer, M. Bethge. RDumb: A simple approach that questions our progress in "
        "continual test-time adaptation. NeurIPS 2023. arXiv:2306.05401",
    ),
    MethodRow(
        "rpl",
        "adapter",
        "methods.adapters.rpl:Rpl",
        "Learns from its own most probable class by a loss that is robust to wrong labels",
        Access(test="stream", state="online", backprop="norm"),
        "E. Rusak et al. If your data distribution shifts, use self-learning. TMLR 2022. arXiv:2104.12928",
    ),
    MethodRow(
        "sar",
        "adapter",
        "methods.adapters.sar:Sar",
        "Minimises the entropy of reliable images, sharpness-aware, and starts anew before it collapses",
        Access(test="stream", state="online", backprop="norm"),
        "S. Niu et al. Towards Stable Test-Time Adaptation in Dynamic Wild World. ICLR 2023. arXiv:2302.12400",
        version=2,
    ),
    MethodRow(
        "deyo",
        "adapter",
        "methods.adapters.deyo:Deyo",
        "Minimises the entropy of images whose prediction changes when their patches are shuffled",
        Access(test="stream", state="online", backprop="norm"),
        "J. Lee et al. Entropy is not Enough for Test-Time Adaptation: From the Perspective of Disentangled Factors. "
        "ICLR 2024. arXiv:2403.07366",
    ),
    MethodRow(
        "come_tent",
        "adapter",
        "methods.adapters.come:ComeTent",
        "TENT on the entropy of opinions, which leave room for not knowing",
        Access(test="stream", state="online", backprop="norm"),
        _ZHANG_COME,
        version=2,
    ),
    MethodRow(
        "come_eata",
        "adapter",
        "methods.adapters.come:ComeEata",
        "EATA on the entropy of opinions, which leave room for not knowing",
        Access(source="unlabelled", test="stream", state="online", backprop="norm"),
        _ZHANG_COME,
        version=2,
    ),
    MethodRow(
        "come_sar",
        "adapter",
        "methods.adapters.come:ComeSar",
        "SAR on the entropy of opinions, which leave room for not knowing",
        Access(test="stream", state="online", backprop="norm"),
        _ZHANG_COME,
        version=2,
    ),
    MethodRow(
        "cotta",
        "adapter",
        "methods.adapters.cotta:Cotta",
        "Learns its running average's predictions over views, and returns single weights to the source",
        Access(test="stream", state="online", backprop="full"),
        "Q. Wang, O. Fink, L. Van Gool, D. Dai. Continual Test-Time Domain Adaptation. CVPR 2022. arXiv:2203.13591",
    ),
    MethodRow(
        "petal",
        "adapter",
        "methods.adapters.petal:Petal",
        "CoTTA kept near the posterior of the source weights; the weights that a batch says least about return",
        Access(source="labelled", test="stream", state="online", backprop="full"),
        "D. Brahma, P. Rai. A Probabilistic Framework for Lifelong Test-Time Adaptation. CVPR 2023. arXiv:2212.09713",
    ),
    MethodRow(
        "rotta",
        "adapter",
        "methods.adapters.rotta:Rotta",
        "Learns its running average's predictions of a class-balanced memory, with robust statistics",
        Access(test="stream", state="online", backprop="norm"),
        "L. Yuan, B. Xie, S. Li. Robust Test-Time Adaptation in Dynamic Scenarios. CVPR 2023. arXiv:2303.13899",
    ),
    MethodRow(
        "note",
        "adapter",
        "methods.adapters.note:Note",
        "Minimises the entropy of a class-balanced memory, with instance-aware batch normalisation",
        Access(test="stream", state="online", backprop="norm"),
        "T. Gong et al. NOTE: Robust Continual Test-time Adaptation Against Temporal Correlation. NeurIPS 2022. "
        "arXiv:2208.05117",
    ),
    MethodRow(
        "sotta",
        "adapter",
        "methods.adapters.sotta:Sotta",
        "Minimises, sharpness-aware, the entropy of a class-balanced memory of confident images",
        Access(test="stream", state="online", backprop="norm"),
        "T. Gong, Y. Kim, T. Lee, S. Chottananurak, S.-J. Lee. SoTTA: Robust Test-Time Adaptation on Noisy Data "
        "Streams. NeurIPS 2023. arXiv:2310.10074",
    ),
    MethodRow(
        "roid",
        "adapter",
        "methods.adapters.roid:Roid",
        "Learns from certain and diverse images by likelihood ratio and consistency, held near the source",
        Access(test="stream", state="online", backprop="norm"),
        "R. A. Marsden, M. Döbler, B. Yang. Universal Test-time Adaptation through Weight Ensembling, Diversity "
        "Weighting, and Prior Correction. WACV 2024. arXiv:2306.00650",
    ),
    MethodRow(
        "cmf",
        "adapter",
        "methods.adapters.cmf:Cmf",
        "ROID with parameters that follow a hidden state inferred by a Kalman filter",
        Access(test="stream", state="online", backprop="norm"),
        "J.-H. Lee, J.-H. Chang. Continual Momentum Filtering on Parameter Space for Online Test-time Adaptation. "
        "ICLR 2024.",
    ),
    MethodRow(
        "adacontrast",
        "adapter",
        "methods.adapters.adacontrast:AdaContrast",
        "Learns labels that near features vote for, and features that tell images of other labels apart",
        Access(test="stream", state="online", backprop="full"),
        "D. Chen, D. Wang, T. Darrell, S. Ebrahimi. Contrastive Test-Time Adaptation. CVPR 2022. arXiv:2204.10377",
        version=2,
    ),
    MethodRow(
        "rmt",
        "adapter",
        "methods.adapters.rmt:Rmt",
        "Learns its running average's predictions, gathers features around source prototypes, replays the source",
        Access(source="labelled", test="stream", state="online", backprop="full"),
        "M. Döbler, R. A. Marsden, B. Yang. Robust Mean Teacher for Continual and Gradual Test-Time Adaptation. CVPR "
        "2023. arXiv:2211.13081",
    ),
    MethodRow(
        "santa",
        "adapter",
        "methods.adapters.santa:Santa",
        "Keeps predictions near the source model's and gathers features around source prototypes",
        Access(source="labelled", test="stream", state="online", backprop="norm"),
        "G. Chakrabarty, M. Sreenivas, S. Biswas. SANTA: Source Anchoring Network and Target Alignment for Continual "
        "Test Time Adaptation. TMLR 2023.",
    ),
    MethodRow(
        "actmad",
        "adapter",
        "methods.adapters.actmad:ActMad",
        "Moves the mean and the variance of activations, place by place, to those of clean source images",
        Access(source="statistics", test="stream", state="online", backprop="full"),
        "M. J. Mirza, P. J. Soneira, W. Lin, M. Kozinski, H. Possegger, H. Bischof. ActMAD: Activation Matching to "
        "Align Distributions for Test-Time-Training. CVPR 2023. arXiv:2211.12870",
    ),
    MethodRow(
        "ttt",
        "adapter",
        "methods.adapters.ttt:Ttt",
        "Learns to tell the rotations of one image, then predicts it and forgets",
        Access(test="image", state="episodic", backprop="full"),
        _SUN,
        needs="source_rotation",
    ),
    MethodRow(
        "ttt_online",
        "adapter",
        "methods.adapters.ttt:TttOnline",
        "Learns to tell the rotations of each image before it predicts it, and goes on from there",
        Access(test="stream", state="online", backprop="full"),
        _SUN,
        needs="source_rotation",
    ),
    MethodRow(
        "ttt_pp",
        "adapter",
        "methods.adapters.ttt_pp:TttPp",
        "Learns to tell views apart and moves the mean and covariance of features to those of clean source images",
        Access(source="statistics", test="stream", state="online", backprop="full"),
        _LIU,
        needs="source_contrast",
    ),
)

METHODS: dict[str, MethodRow] = {row.name: row for row in _ROWS}
