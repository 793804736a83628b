"""What ament_python installs."""

from setuptools import setup

setup(
    name="fieldlm_ros",
    version="0.1.0",
    packages=["fieldlm_ros"],
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/fieldlm_ros"]),
        ("share/fieldlm_ros", ["package.xml", "move.json"]),
    ],
    install_requires=["setuptools"],
    license="Apache-2.0",
    entry_points={"console_scripts": ["fieldlm = fieldlm_ros.node:main"]},
)
