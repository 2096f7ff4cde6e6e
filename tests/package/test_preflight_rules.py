"""Every rule of the marketplace: broken once, it says so; the package of this tree keeps it."""

import dataclasses
from collections import Counter

import pytest

from devtools.preflight import (
    capabilities,
    code,
    contents,
    declarations,
    dependencies,
    hosts,
    icons,
    manifest,
    privacy,
    readme,
    secrets,
    versions,
    wording,
)
from devtools.preflight.catalogue import GROUPS, findings
from devtools.preflight.opened import Entry, Package
from devtools.preflight.owner import Owner
from devtools.preflight.rule import Rule, Severity
from tests.package.preflight import (
    OWNER,
    Case,
    Change,
    both,
    field,
    file,
    line,
    replaced,
    text,
    whole,
    without,
)

MANIFEST = "manifest.yaml"
PROVIDER = "provider/holysheep.yaml"
NODE = "nodes/holysheep_llm.yaml"
GROUP = "group/holysheep.yaml"
ENDPOINT = "endpoints/health.yaml"
SOURCE = "nodes/holysheep_llm.py"
HAN, KANA = "\u4e2d\u6587", "\u304b\u306a"
RANDOM = "".join("q7Zp9xV2kL4mT8wB3nRc6yHd")  # what a drawn secret looks like
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8">{}</svg>'


def many(count: int) -> Change:
    names = (Entry(f"nodes/{number}.txt", b"x") for number in range(count))
    return lambda package: replaced(package, entries=(*package.entries, *names))


def twice(name: str) -> Change:
    def change(package: Package) -> Package:
        return replaced(package, entries=(*package.entries, Entry(name, package.files[name])))

    return change


def tree(**fields: object) -> Change:
    return lambda package: replaced(package, tree=dataclasses.replace(package.tree, **fields))


def requirement(added: str) -> Change:
    return line("requirements.txt", added)


def dependency(added: str) -> Change:
    return text("pyproject.toml", "dependencies = [\n", f'dependencies = [\n    "{added}",\n')


def development(added: str) -> Change:
    return text("pyproject.toml", "dev = [\n", f'dev = [\n    "{added}",\n')


def icon(content: bytes | str) -> Change:
    return file("_assets/icon.svg", content)


CASES = [
    # Manifest
    Case(manifest.files_can_be_read, file(NODE, "a: [b"), f"{NODE} cannot be read"),
    Case(manifest.files_can_be_read, file(NODE, "a"), "holds no mapping"),
    Case(manifest.files_can_be_read, file("pyproject.toml", "a"), "pyproject.toml cannot"),
    Case(manifest.files_can_be_read, file("README.md", b"\xff"), "README.md cannot"),
    *(
        Case(manifest.required_fields_are_filled, field(MANIFEST, path, None), f"has no {path};")
        for path in (
            *("author", "name", "version", "type", "icon", "plugins", "privacy", "created_at"),
            *("label.en_US", "description.en_US", "resource.memory", "meta.version", "meta.arch"),
            *("meta.runner.language", "meta.runner.version", "meta.runner.entrypoint"),
        )
    ),
    Case(manifest.the_repository_is_named, field(MANIFEST, "repo", ""), "has no repo"),
    Case(manifest.a_contact_is_named, field(MANIFEST, "contact", ""), "has no contact"),
    *(
        Case(manifest.the_repository_is_on_a_known_forge, field(MANIFEST, "repo", repo), repo)
        for repo in (
            "https://example.org/someone/plugin",
            "https://github.com/someone",
            "https://github.com.example.org/someone/plugin",
            "see https://github.com/someone/plugin",
            "git@github.com:someone/plugin",
        )
    ),
    *(
        Case(manifest.the_contact_is_an_address, field(MANIFEST, "contact", contact), contact)
        for contact in ("someone", "someone@example", "mailto:a@example.org", "a b@example.org")
    ),
    Case(manifest.names_have_the_daemons_form, field(MANIFEST, "author", "Someone"), "author"),
    Case(manifest.names_have_the_daemons_form, field(MANIFEST, "author", "a" * 65), "author"),
    Case(manifest.names_have_the_daemons_form, field(MANIFEST, "name", "holy sheep"), "name"),
    Case(manifest.names_have_the_daemons_form, field(MANIFEST, "version", "1.0"), "version"),
    Case(manifest.the_author_is_not_dify, field(MANIFEST, "author", "for-dify"), "'dify'"),
    Case(manifest.the_author_is_not_dify, field(MANIFEST, "author", "langgenius2"), "'langgenius'"),
    Case(
        manifest.fixed_fields_have_their_values, field(MANIFEST, "type", "tool"), "type is 'tool'"
    ),
    Case(
        manifest.fixed_fields_have_their_values,
        field(MANIFEST, "meta.runner.language", "go"),
        "meta.runner.language is 'go'",
    ),
    Case(
        manifest.fixed_fields_have_their_values,
        field(MANIFEST, "meta.runner.version", 3.12),
        "meta.runner.version is 3.12",
    ),
    Case(manifest.architectures_are_known, field(MANIFEST, "meta.arch", ["riscv"]), "'riscv'"),
    Case(manifest.the_entrypoint_exists, without("main.py"), "no main.py"),
    Case(manifest.resources_are_in_range, field(MANIFEST, "resource.memory", "256M"), "'256M'"),
    Case(manifest.resources_are_in_range, field(MANIFEST, "resource.memory", 0), "memory is 0"),
    *(
        Case(
            manifest.resources_are_in_range,
            field(MANIFEST, "resource.permission.storage.size", size),
            f"storage.size is {size}",
        )
        for size in (1023, 2**30 + 1, True)
    ),
    Case(
        manifest.the_date_is_in_the_past,
        text(MANIFEST, "created_at: 20", "created_at: 90"),
        "in the future",
    ),
    Case(manifest.the_date_is_in_the_past, field(MANIFEST, "created_at", "today"), "today must"),
    Case(
        manifest.the_privacy_policy_is_where_the_manifest_says,
        field(MANIFEST, "privacy", "docs/PRIVACY.md"),
        "docs/PRIVACY.md",
    ),
    Case(
        manifest.the_oldest_dify_is_named,
        field(MANIFEST, "meta.minimum_dify_version", None),
        "minimum_dify_version",
    ),
    # Declarations
    Case(declarations.declared_files_are_there, without(SOURCE), f"{NODE} names {SOURCE}"),
    Case(declarations.declared_files_are_there, without(NODE), f"{PROVIDER} names {NODE}"),
    Case(declarations.declared_files_are_there, without(PROVIDER), f"{MANIFEST} names {PROVIDER}"),
    Case(declarations.declared_files_are_there, without(GROUP), f"{MANIFEST} names {GROUP}"),
    Case(declarations.declared_files_are_there, without(ENDPOINT), f"{GROUP} names {ENDPOINT}"),
    Case(
        declarations.declared_files_are_there,
        without("endpoints/health.py"),
        f"{ENDPOINT} names endpoints/health.py",
    ),
    Case(
        declarations.declared_files_are_there,
        without("_assets/icon-dark.svg"),
        f"{MANIFEST} names _assets/icon-dark.svg",
    ),
    Case(declarations.declared_files_are_there, field(NODE, "extra", {}), "names no source"),
    Case(
        declarations.declared_paths_are_short,
        field(PROVIDER, "tools.0", f"nodes/{'a' * 128}.yaml"),
        "128 characters",
    ),
    Case(
        declarations.the_plugin_has_nodes, field(MANIFEST, "plugins.tools", []), "no tool provider"
    ),
    Case(declarations.the_plugin_has_nodes, field(PROVIDER, "tools", []), "names no nodes"),
    Case(
        declarations.kinds_may_stand_together,
        field(MANIFEST, "plugins.models", ["provider/model.yaml"]),
        "plugins.models",
    ),
    Case(
        declarations.there_is_one_provider_and_one_group,
        field(MANIFEST, "plugins.tools", [PROVIDER, PROVIDER]),
        "plugins.tools has 2 files",
    ),
    Case(
        declarations.there_is_one_provider_and_one_group,
        field(MANIFEST, "plugins.endpoints", [GROUP, GROUP]),
        "plugins.endpoints has 2 files",
    ),
    Case(declarations.identities_are_complete, field(NODE, "identity.author", ""), "no author"),
    Case(declarations.identities_are_complete, field(NODE, "identity.label", {}), "no label"),
    Case(
        declarations.identities_are_complete, field(PROVIDER, "identity.name", "a b"), "name must"
    ),
    Case(declarations.one_author_everywhere, field(NODE, "identity.author", "other"), "'other'"),
    Case(declarations.one_author_everywhere, field(MANIFEST, "author", "other"), "has 'other'"),
    Case(
        declarations.tags_are_known, field(MANIFEST, "tags", ["llm"]), f"{MANIFEST}: the tag 'llm'"
    ),
    Case(
        declarations.tags_are_known,
        field(PROVIDER, "identity.tags", ["llm"]),
        f"{PROVIDER}: the tag 'llm'",
    ),
    Case(
        declarations.texts_have_all_languages,
        field(NODE, "parameters.0.human_description.ja_JP", ""),
        "lacks ja_JP",
    ),
    Case(
        declarations.texts_have_all_languages,
        field(MANIFEST, "description", {"en_US": "English"}),
        "description lacks zh_Hans, pt_BR, ja_JP",
    ),
    Case(
        declarations.texts_have_all_languages,
        field(PROVIDER, "credentials_for_provider.api_key.label.en_US", " "),
        "credentials_for_provider.api_key.label lacks en_US",
    ),
    Case(
        declarations.texts_are_short,
        field(MANIFEST, "label.pt_BR", "a" * 1024),
        "label.pt_BR has more than 1023",
    ),
    Case(declarations.nodes_are_described, field(NODE, "description.llm", ""), "description.llm"),
    Case(declarations.outputs_are_declared, field(NODE, "output_schema", {}), "output_schema"),
    Case(
        declarations.parameters_are_complete,
        field(NODE, "parameters.0.human_description", None),
        "lacks human_description",
    ),
    Case(declarations.types_are_known, field(NODE, "parameters.0.type", "text"), "type 'text'"),
    Case(declarations.types_are_known, field(NODE, "parameters.0.form", "user"), "form 'user'"),
    Case(
        declarations.types_are_known,
        field(PROVIDER, "credentials_for_provider.max_concurrency.type", "number"),
        "max_concurrency has the type 'number'",
    ),
    Case(declarations.types_are_known, field(GROUP, "settings.0.type", "number"), GROUP),
    Case(declarations.scopes_are_on_selectors, field(NODE, "parameters.0.scope", "llm"), "a scope"),
    Case(
        declarations.options_are_short_texts,
        field(PROVIDER, "credentials_for_provider.auth_header.options.0.value", True),
        "'auth_header' has the option True",
    ),
    Case(
        declarations.options_are_short_texts,
        field(PROVIDER, "credentials_for_provider.auth_header.options.0.value", "a" * 128),
        "127 characters",
    ),
    Case(
        declarations.settings_are_few,
        field(GROUP, "settings", [{"name": f"field_{n}"} for n in range(65)]),
        f"{GROUP} has 65 fields",
    ),
    Case(declarations.endpoints_have_path_and_method, field(ENDPOINT, "path", "health"), "slash"),
    Case(
        declarations.endpoints_have_path_and_method, field(ENDPOINT, "method", "PATCH"), "'PATCH'"
    ),
    Case(
        declarations.endpoints_have_path_and_method,
        field(ENDPOINT, "path", "/metrics"),
        "GET /metrics",
    ),
    # Icons
    Case(icons.icons_are_named, field(MANIFEST, "icon", ""), f"{MANIFEST} names no icon"),
    Case(icons.icons_are_named, field(PROVIDER, "identity.icon", ""), f"{PROVIDER} names no icon"),
    Case(icons.icons_are_named, field(MANIFEST, "icon", "a" * 129), "128 characters"),
    Case(icons.icons_are_pictures, icon("<svg"), "no SVG picture"),
    Case(icons.icons_are_pictures, icon("<html/>"), "no SVG picture"),
    Case(icons.icons_are_pictures, icon(SVG.replace("viewBox", "box")), "viewBox"),
    Case(icons.icons_are_pictures, icon(f"<!DOCTYPE svg>{SVG}"), "no SVG picture"),
    Case(
        icons.icons_are_pictures,
        both(field(MANIFEST, "icon", "icon.png"), file("_assets/icon.png", b"GIF89a")),
        "neither an SVG nor a PNG",
    ),
    Case(
        icons.icons_are_not_the_template,
        icon(SVG.format("<!-- DIFY_MARKETPLACE_TEMPLATE_ICON_DO_NOT_USE -->")),
        "_assets/icon.svg is the template's",
    ),
    *(
        Case(icons.icons_load_nothing, icon(SVG.format(shape)), f"<{shape[1:].split()[0]}>")
        for shape in (
            '<image width="1"/>',
            '<script x="1"/>',
            '<rect href="x"/>',
            '<rect fill="url(#a)"/>',
            '<rect fill="https://example.org"/>',
            '<rect onload="x()"/>',
        )
    ),
    # Versions
    *(
        Case(versions.versions_are_equal, text(name, old, new), f"{name} has the version 9.9.9")
        for name, old, new in (
            ("pyproject.toml", '\nversion = "', '\nversion = "9.9.9"  # "'),
            ("holysheep/config.py", '\nVERSION = "', '\nVERSION = "9.9.9"  # "'),
            ("CHANGELOG.md", "\n## [", "\n## [9.9.9]\n\n## ["),
        )
    ),
    Case(versions.versions_are_equal, field(MANIFEST, "version", "9.9.9"), "manifest.yaml 9.9.9"),
    # README
    Case(
        readme.the_readme_names_the_source,
        text("README.md", "https://github.com", "https://example.org"),
        "names no repository",
    ),
    Case(readme.the_readme_has_no_han_characters, line("README.md", HAN), "Han characters"),
    Case(
        readme.the_readme_has_no_han_characters,
        line("README.md", f"```\n{HAN}\n```"),
        "Han characters",
    ),
    Case(readme.documents_are_in_english, line("PRIVACY.md", HAN), "PRIVACY.md, line"),
    Case(readme.documents_are_in_english, line("README.md", KANA), "README.md, line"),
    Case(readme.documents_are_in_english, line("CHANGELOG.md", KANA), "CHANGELOG.md, line"),
    *(
        Case(readme.the_readme_says_what_a_user_needs, file("README.md", written), missing)
        for written, missing in (
            ("Use it with an API key and a base URL.", "how it is set up"),
            ("Install it with an API key and a base URL.", "how it is used"),
            ("Install it and use it with a base URL.", "what key"),
            ("Install it and use it with an API key.", "what it connects to"),
        )
    ),
    *(
        Case(
            readme.the_readme_has_the_usual_sections,
            file(
                "README.md",
                "\n".join(
                    f"## {one}"
                    for one in ("Features", "Setup", "Usage", "Privacy")
                    if one != section
                ),
            ),
            f"like {section!r}",
        )
        for section in ("Features", "Setup", "Usage", "Privacy")
    ),
    Case(readme.links_lead_to_something, line("README.md", "[a](docs/none.md)"), "docs/none.md"),
    Case(
        readme.links_lead_to_something,
        file("readme/README_pt_BR.md", "[a](README.md)"),
        "readme/README_pt_BR.md links to README.md",
    ),
    Case(
        readme.links_lead_to_something,
        line("README.md", f"[a]({OWNER.repo}/blob/HEAD/docs/none.md#a)"),
        "blob/HEAD/docs/none.md",
    ),
    Case(readme.pictures_are_in_assets, line("README.md", "![a](docs/a.png)"), "shows docs/a.png"),
    Case(readme.translations_are_named_right, file("README_zh.md", "x"), "README_zh.md is not"),
    Case(readme.translations_are_named_right, file("readme/pt_BR.md", "x"), "readme/pt_BR.md is"),
    Case(readme.translations_are_named_right, file("readme/README_zh_Hant.md", "x"), "zh_Hant"),
    # Privacy
    Case(
        privacy.the_policy_is_filled_in,
        file("PRIVACY.md", "!!! Please fill in the privacy policy of the plugin."),
        "is the template",
    ),
    Case(privacy.the_policy_is_about_data, file("PRIVACY.md", "Be well."), "says nothing of what"),
    # Contents
    Case(
        contents.the_package_is_small,
        lambda package: replaced(package, size_bytes=15 * 2**20 + 1),
        "15,728,640",
    ),
    Case(
        contents.the_unpacked_files_are_small,
        file("nodes/large.txt", bytes(50 * 2**20)),
        "52,428,800",
    ),
    Case(
        contents.each_file_is_small, file("nodes/a.txt", bytes(2**20 + 1)), "nodes/a.txt has more"
    ),
    Case(contents.the_files_are_few, many(5000), "5,000"),
    Case(contents.names_are_unique, twice("main.py"), "main.py is in the package twice"),
    *(
        Case(contents.names_lie_inside_the_package, file(name, "x"), f"{name} does not lie")
        for name in ("/main.py", "nodes/../../x", "nodes\\x")
    ),
    *(
        Case(
            contents.folders_are_those_of_the_plugin,
            file(f"{folder}/x", "x"),
            f"{folder}/ is not needed",
        )
        for folder in ("tests", "devtools", "examples", "docs", "scripts", ".github")
    ),
    *(
        Case(contents.folders_of_tools_stay_out, file(f"nodes/{folder}/x", "x"), f"{folder}/x must")
        for folder in (".git", ".venv", "env", "__pycache__", "node_modules", "build", "dist")
    ),
    *(
        Case(contents.files_of_tools_stay_out, file(f"nodes/{name}", "x"), f"{name} must not")
        for name in (
            *(".env", ".env.local", ".DS_Store", "Thumbs.db", "id_rsa", "a.key", "a.pem"),
            *("a.pyc", "a.log", "a.tmp", "a.bak", "uv.lock", "a.difypkg"),
        )
    ),
    Case(contents.archives_stay_out, file("nodes/a.zip", b"PK"), "nodes/a.zip is an archive"),
    *(
        Case(contents.native_programs_stay_out, file("nodes/a.txt", magic), kind)
        for magic, kind in (
            (b"\x7fELF\x02", "(ELF)"),
            (b"MZ\x90\x00", "(PE)"),
            (b"\xcf\xfa\xed\xfe", "(Mach-O)"),
            (b"\xca\xfe\xba\xbe", "(Mach-O)"),
        )
    ),
    *(
        Case(
            contents.native_programs_stay_out, file(f"nodes/{name}", b"x"), f"nodes/{name} is named"
        )
        for name in (
            "a.so",
            "a.dll",
            "a.dylib",
            "a.exe",
            "a.pyd",
            "a.node",
            "dify-plugin-linux-arm",
        )
    ),
    Case(contents.scripts_stay_out, file("nodes/a.sh", "x"), "nodes/a.sh is named"),
    Case(
        contents.nothing_is_executable,
        file("nodes/a.py", "x", mode=0o100755),
        "nodes/a.py is executable",
    ),
    Case(contents.nothing_is_a_link, file("nodes/a", "b", mode=0o120777), "nodes/a is a symbolic"),
    *(
        Case(contents.required_files_are_there, without(name), f"{name} is missing")
        for name in (
            *("manifest.yaml", "main.py", "requirements.txt", "pyproject.toml", "README.md"),
            *("PRIVACY.md", "CHANGELOG.md", "LICENSE"),
        )
    ),
    Case(contents.required_files_are_there, file("PRIVACY.md", " \n"), "PRIVACY.md is missing"),
    Case(
        contents.the_engine_is_complete, without("holysheep/prices.yaml"), "holysheep/prices.yaml"
    ),
    Case(contents.ignore_lines_are_plain, tree(ignore_lines=("!docs/",)), "'!docs/'"),
    Case(contents.ignore_lines_are_plain, tree(ignore_lines=("# docs",)), "'# docs'"),
    # Secrets
    *(
        Case(secrets.nothing_has_the_shape_of_a_key, line("README.md", shape), "README.md, line")
        for shape in (
            "sk-" + "x" * 20,
            "ghp_" + "x" * 20,
            "xoxb-" + "1" * 10,
            "AKIA" + "X" * 16,
            f"eyJ{'x' * 8}.{'x' * 8}.{'x' * 8}",
            "-----BEGIN RSA PRIVATE " + "KEY-----",
        )
    ),
    Case(secrets.no_secret_is_assigned, line(SOURCE, f'API_KEY = "{RANDOM}"'), f"{SOURCE}, line"),
    Case(secrets.no_secret_is_assigned, line(NODE, f"x_token: {RANDOM}"), f"{NODE}, line"),
    Case(secrets.no_secret_is_assigned, line(SOURCE, f'{{"password": "{RANDOM}"}}'), SOURCE),
    Case(secrets.no_secret_is_assigned, line(SOURCE, 'secret = "0123456789abcdef"'), SOURCE),
    # Dependencies
    Case(
        dependencies.the_sdk_is_new_enough,
        text("requirements.txt", "dify-plugin==", "dify-plugin==0.8.9  # "),
        "requirements.txt has 'dify-plugin==0.8.9'",
    ),
    Case(
        dependencies.the_sdk_is_new_enough,
        text("pyproject.toml", '"dify-plugin>=', '"dify_plugin~=0.10.2",  # "'),
        "pyproject.toml has 'dify_plugin~=0.10.2'",
    ),
    Case(
        dependencies.the_sdk_is_new_enough,
        text("requirements.txt", "dify-plugin==", "# "),
        "requirements.txt does not name dify-plugin",
    ),
    *(
        Case(dependencies.requirements_come_from_the_index, change, said)
        for change, said in (
            (requirement("git+https://github.com/a/b"), "requirements.txt has 'git+"),
            (requirement("a @ https://example.org/a.whl"), "requirements.txt has 'a @"),
            (dependency("a @ git+https://github.com/a/b"), "project.dependencies, has 'a @"),
        )
    ),
    Case(dependencies.requirements_are_no_local_paths, requirement("./a"), "has './a'"),
    Case(dependencies.requirements_are_no_local_paths, requirement("-e ."), "has '-e .'"),
    Case(dependencies.requirements_have_a_version, requirement("a"), "requirements.txt has 'a'"),
    Case(dependencies.requirements_have_a_version, dependency("a[b]"), "has 'a[b]'"),
    Case(dependencies.requirements_have_a_version, development("a"), "dependency-groups.dev, has"),
    Case(
        dependencies.requirements_have_a_version,
        development("a; python_version < '4'"),
        'has "a; python',
    ),
    Case(dependencies.requirements_have_an_upper_bound, dependency("a>=1"), "has 'a>=1'; add"),
    Case(dependencies.requirements_have_an_upper_bound, development("a>1"), "has 'a>1'; add"),
    Case(dependencies.no_requirement_is_approximate, dependency("a~=1.0"), "has 'a~=1.0'"),
    Case(dependencies.requirements_are_small, requirement("torch==2.0"), "has 'torch==2.0'"),
    Case(dependencies.requirements_are_small, dependency("playwright>=1,<2"), "'playwright>=1,<2'"),
    Case(dependencies.requirements_are_pinned, requirement("a>=1,<2"), "'a>=1,<2', which is no"),
    Case(
        dependencies.both_files_install_the_same,
        requirement("a==1"),
        "a==1 is in requirements.txt only",
    ),
    Case(
        dependencies.both_files_install_the_same,
        text("requirements.txt", "idna==", "# "),
        "is in pyproject.toml only",
    ),
    Case(
        dependencies.both_files_install_the_same,
        text("pyproject.toml", "constraint-dependencies", "constraints"),
        "no tool.uv.constraint-dependencies",
    ),
    # Python sources
    Case(code.sources_compile, file("nodes/a.py", "def"), "nodes/a.py does not compile"),
    Case(code.sources_compile, file("nodes/a.py", b"x\0"), "nodes/a.py does not compile"),
    Case(
        code.requests_have_a_timeout, file("nodes/a.py", "requests.get(url)"), "nodes/a.py, line 1"
    ),
    Case(
        code.nothing_secret_is_logged,
        file("nodes/a.py", "_logger.info('key %s', settings.api_key)"),
        "nodes/a.py, line 1, logs 'api_key'",
    ),
    Case(
        code.nothing_secret_is_logged,
        file("nodes/a.py", "logging.error(f'{password}')"),
        "logs 'password'",
    ),
    # Capabilities
    *(
        Case(capabilities.signals_are_explained, line(SOURCE, call), f"reads like {kind};")
        for call, kind in (
            ("subprocess.run([])", "command execution"),
            ("os.system('x')", "command execution"),
            ("eval('x')", "code execution"),
            ("pickle.loads(x)", "code execution"),
            ("importlib.import_module(x)", "code execution"),
            ("paramiko.connect()", "SSH or SFTP"),
            ("open('x')", "filesystem operations"),
            ("os.listdir('x')", "filesystem operations"),
            ("shutil.rmtree('x')", "filesystem operations"),
            ("httpx.post('x')", "arbitrary network requests"),
            ("import selenium", "browser automation"),
        )
    ),
    # Hosts
    Case(hosts.hosts_are_declared, line(SOURCE, 'X = "https://a.dify.ai/b"'), "names a.dify.ai"),
    Case(hosts.hosts_are_declared, file("nodes/a.js", "f('http://1.2.3.4/')"), "names 1.2.3.4"),
    Case(
        hosts.hosts_are_declared,
        field(MANIFEST, "network.domains", ["*.example.org"]),
        "names api.holysheep.ai",
    ),
    # Wording
    *(
        Case(wording.nothing_reads_like_a_payment, line(name, word), f"word {word.strip('/# ')!r}")
        for name, word in (
            ("README.md", "char" + "ged"),
            ("README.md", "pay" + "ments"),
            (MANIFEST, "# trans" + "action"),
            (SOURCE, "# re" + "fund"),
            ("holysheep/web/script.js", "// check" + "out"),
            ("pyproject.toml", "# de" + "posit"),
            (SOURCE, "# with" + "drawal"),
            (SOURCE, "# pay" + "outs"),
            (SOURCE, "# tra" + "ding"),
            (SOURCE, "# send" + " tokens"),
        )
    ),
]

RULES = [rule for rules in GROUPS.values() for rule in rules]
_seen: Counter[str] = Counter()


def identity(case: Case) -> str:
    """The name of the rule, and which of its cases it is."""
    _seen[case.rule.name] += 1
    return f"{case.rule.name}-{_seen[case.rule.name]}"


@pytest.mark.parametrize("case", CASES, ids=identity)
def test_broken_rule_is_reported(case: Case) -> None:
    sentences = [finding.sentence for finding in case.rule.findings(case.change(whole()))]
    assert [sentence for sentence in sentences if case.said in sentence], sentences
    assert all(sentence.endswith(".") for sentence in sentences)


def test_every_rule_is_broken_once() -> None:
    assert {rule.name for rule in RULES} == {case.rule.name for case in CASES}


def test_rules_have_names_of_their_own() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_package_with_the_owners_values_breaks_no_rule() -> None:
    assert [finding for found in findings(whole()).values() for finding in found] == []


def test_package_without_them_lacks_nothing_else() -> None:
    found = [finding for group in findings(whole(Owner())).values() for finding in group]
    assert {finding.severity for finding in found} == {Severity.OWNER}
    wanted = ["has no repo", "has no contact", "README.md names no repository"]
    assert [[part in one.sentence for part in wanted].count(True) for one in found] == [1, 1, 1]


def test_file_that_cannot_be_read_is_one_finding() -> None:
    broken = file(MANIFEST, "a: [b")(whole())
    found = [finding for group in findings(broken).values() for finding in group]
    assert len(found) == 1
    assert found[0].sentence.startswith(f"{MANIFEST} cannot be read")
    assert found[0].severity is Severity.BLOCKS


@pytest.mark.parametrize(
    ("rule", "harmless"),
    [
        (
            secrets.nothing_has_the_shape_of_a_key,
            line("README.md", "sk-your-api-key, task-" + "x" * 30),
        ),
        (secrets.no_secret_is_assigned, line(SOURCE, f"api_key = read({RANDOM})")),
        (secrets.no_secret_is_assigned, line(NODE, "max_tokens: 4096")),
        (icons.icons_are_pictures, icon(f"<!-- drawn by hand -->{SVG}")),
        (hosts.hosts_are_declared, file("nodes/a.py", '"""See https://dify.ai/x."""')),
        (hosts.hosts_are_declared, line(SOURCE, 'X = "https://docs.dify.ai http://a.example"')),
        (capabilities.signals_are_explained, line(SOURCE, "re.compile('x'); path.open()")),
        (code.nothing_secret_is_logged, line(SOURCE, "blog.info(api_key)")),
        (code.requests_have_a_timeout, line(SOURCE, "requests.get(url, timeout=1)")),
        (readme.links_lead_to_something, line("README.md", "[a](#b) [c](mailto:d) [e](LICENSE#f)")),
        (readme.links_lead_to_something, file("readme/README_pt_BR.md", "![a](_assets/icon.svg)")),
        (readme.pictures_are_in_assets, file("readme/README_pt_BR.md", "![a](../_assets/b.png)")),
        (dependencies.requirements_are_small, development("playwright>=1,<2")),
        (dependencies.requirements_have_a_version, development("a>=1,<2; sys_platform == 'x'")),
        (wording.nothing_reads_like_a_payment, line("README.md", "in charge" + "able form")),
        (contents.files_of_tools_stay_out, file(".env.example", "KEY=your-api-key")),
    ],
    ids=lambda value: value.name if isinstance(value, Rule) else "case",
)
def test_what_is_in_order_is_left_alone(rule: Rule, harmless: Change) -> None:
    assert rule.findings(harmless(whole())) == []
